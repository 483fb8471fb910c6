"""Model folders of every family and form, as if trained, with the vectors that they give here."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from llmrec.hub.export import save_model
from modeling_llmrec import LLMRecModel, LLMRecProcessor

HISTORIES = [["Espresso Beans 1 kg", "Burr Grinder", "Milk Jug"], ["Guitar Strings"]]
ITEMS = ["Electric Guitar", "Coffee Machine", "Barista's Handbook"]


def _lora(model: LLMRecModel, names: tuple[str, ...], seed: int) -> PeftModel:
    """Adapters over every linear layer, and over the head where it has weights, as if trained."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=4,
        target_modules="all-linear",
        exclude_modules=["head.projection"],
        modules_to_save=["head"] if list(model.head.parameters()) else None,
        init_lora_weights=False,
    )
    peft_model = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        peft_model.add_adapter(name, config)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter) if parameter.requires_grad else 0)
    return peft_model.eval()


def vectors_of(model, processor) -> list[torch.Tensor]:
    """Vectors of users and items, and scores."""
    with torch.no_grad():
        output = model(**processor(histories=HISTORIES, items=ITEMS))
    return [output.user_embeds, output.item_embeds, output.scores]


def save_as(family: str, form: str, source: str, folder: Path, seed: int = 0) -> dict[str, list[torch.Tensor]]:
    """Write a model folder over `backbones/<family>`; returns vectors of users and items, and scores, by adapter.

    Args:
        family: one of FAMILIES.
        form: "full", "adapter", "multi" (adapters "books" and "groceries"), or "merged": an adapter that is to be
            merged, whose vectors stand under "".
        source: folder of the backbone.
        folder: where to.
        seed: of the adapters.
    """
    model = LLMRecModel.from_backbone(source, projection_dim=8, backbone_name_or_path=f"backbones/{family}")
    processor = LLMRecProcessor.from_backbone(source, config=model.config)
    if form == "full":
        vectors = {"": vectors_of(model, processor)}
        save_model(model, processor, folder)
        return vectors
    names = ("books", "groceries") if form == "multi" else ("default",)
    peft_model, vectors = _lora(model, names, seed), {}
    for name in names:
        peft_model.set_adapter(name)
        vectors[name] = vectors_of(peft_model.eval(), processor)
    save_model(peft_model, processor, folder, form="adapter")
    return {"": vectors["default"]} if form == "merged" else vectors
