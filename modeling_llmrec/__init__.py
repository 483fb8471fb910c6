"""From titles to vectors and scores: the model and its processor."""

from transformers import AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_llmrec import LLMRecConfig
from .modeling_llmrec import LLMRecModel, LLMRecOutput
from .pipeline_llmrec import RecommendationPipeline
from .processing_llmrec import LLMRecProcessor

# With the package installed, the Auto classes know the model without `trust_remote_code`.
AutoModel.register(LLMRecConfig, LLMRecModel, exist_ok=True)
AutoProcessor.register(LLMRecConfig, LLMRecProcessor, exist_ok=True)
# And `pipeline("recommendation", model=model, processor=processor)` takes a model that is loaded already.
PIPELINE_REGISTRY.register_pipeline(
    "recommendation", pipeline_class=RecommendationPipeline, pt_model=AutoModel, type="text"
)

__all__ = ["LLMRecConfig", "LLMRecModel", "LLMRecOutput", "LLMRecProcessor", "RecommendationPipeline"]
