"""What an LLM-Rec checkpoint says about itself."""

from transformers import AutoConfig

from .configuration_llmrec import LLMRecConfig

# With the package installed, `AutoConfig` knows the model type without `trust_remote_code`.
AutoConfig.register(LLMRecConfig.model_type, LLMRecConfig, exist_ok=True)

__all__ = ["LLMRecConfig"]
