"""From scores to ranks, metrics, intervals, tables and reports."""

from llmrec.evaluation.histories import Histories
from llmrec.evaluation.intervals import Bootstrap, Interval, mean_interval, paired_difference
from llmrec.evaluation.metrics import KS, calc, calc_metric, calc_per_user, metric_names
from llmrec.evaluation.protocols import PRESETS, Protocol, get_protocol
from llmrec.evaluation.ranker import CollapsedModelWarning, RankResult, SmallDomainWarning, rank
from llmrec.evaluation.report import write_report
from llmrec.evaluation.results import ResultsError, load_ranks, load_results, ranks_to_rows, write_results
from llmrec.evaluation.runner import Evaluation, EvaluationData, evaluate_systems, sample_rows
from llmrec.retrieval.scorers import EmbeddingScorer, PopularityScorer, Scorer

__all__ = [
    "KS",
    "PRESETS",
    "Bootstrap",
    "CollapsedModelWarning",
    "EmbeddingScorer",
    "Evaluation",
    "EvaluationData",
    "Histories",
    "Interval",
    "PopularityScorer",
    "Protocol",
    "RankResult",
    "ResultsError",
    "Scorer",
    "SmallDomainWarning",
    "calc",
    "calc_metric",
    "calc_per_user",
    "evaluate_systems",
    "get_protocol",
    "load_ranks",
    "load_results",
    "mean_interval",
    "metric_names",
    "paired_difference",
    "rank",
    "ranks_to_rows",
    "sample_rows",
    "write_report",
    "write_results",
]
