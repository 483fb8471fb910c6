# Stands in for the real file, which takes its place in a published folder.
from configuration_llmrec.configuration_llmrec import AUTO_MAP, LLMRecConfig  # noqa: F401
