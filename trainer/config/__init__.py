"""The schema of the configuration: one frozen model a section, and the arithmetic that follows from them alone.

No TensorFlow and no input or output here: `config_io` reads files, and `drumline check` answers in a fraction of a second.
Every default of Drumline stands in this package.
"""

from trainer.config.batches import BatchPlan, plan_batches
from trainer.config.data import (
    AugmentationConfig,
    DataConfig,
    DecontaminationConfig,
    DuplicatesConfig,
    FieldsConfig,
    FoldsConfig,
    MaskingConfig,
    SourceConfig,
    TokenizerConfig,
)
from trainer.config.model import LoraConfig, ModelConfig
from trainer.config.prediction import GenerationConfig
from trainer.config.privacy import PrivacyConfig
from trainer.config.run import (
    CheckpointConfig,
    DistributionConfig,
    DivergenceConfig,
    EvaluationConfig,
    LoggingConfig,
    RunConfig,
    WatchdogConfig,
)
from trainer.config.search import ParameterConfig, PruningConfig, Scalar, SearchConfig
from trainer.config.section import Section
from trainer.config.security import SecurityConfig
from trainer.config.tasks import ENCODER_DECODERS, FIELDS, METRICS, METRICS_OF_TEXTS, METRICS_TO_MINIMIZE, Family, Task
from trainer.config.training import OptimizerConfig, TrainConfig
from trainer.config.whole import Config

__all__ = [
    "ENCODER_DECODERS",
    "FIELDS",
    "METRICS",
    "METRICS_OF_TEXTS",
    "METRICS_TO_MINIMIZE",
    "AugmentationConfig",
    "BatchPlan",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DecontaminationConfig",
    "DistributionConfig",
    "DivergenceConfig",
    "DuplicatesConfig",
    "EvaluationConfig",
    "Family",
    "FieldsConfig",
    "FoldsConfig",
    "GenerationConfig",
    "LoggingConfig",
    "LoraConfig",
    "MaskingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParameterConfig",
    "PrivacyConfig",
    "PruningConfig",
    "RunConfig",
    "Scalar",
    "SearchConfig",
    "Section",
    "SecurityConfig",
    "SourceConfig",
    "Task",
    "TokenizerConfig",
    "TrainConfig",
    "WatchdogConfig",
    "plan_batches",
]
