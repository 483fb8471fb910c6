"""From titles to vectors and scores: the model and its processor."""

from transformers import AutoModel, AutoProcessor

from .configuration_llmrec import LLMRecConfig
from .modeling_llmrec import LLMRecModel, LLMRecOutput
from .processing_llmrec import LLMRecProcessor

# With the package installed, the Auto classes know the model without `trust_remote_code`.
AutoModel.register(LLMRecConfig, LLMRecModel, exist_ok=True)
AutoProcessor.register(LLMRecConfig, LLMRecProcessor, exist_ok=True)

__all__ = ["LLMRecConfig", "LLMRecModel", "LLMRecOutput", "LLMRecProcessor"]
