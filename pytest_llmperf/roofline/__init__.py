"""What serving a model on a part takes: operations, bytes, memory; and what the part can do at best."""

from pytest_llmperf.roofline.deployment import Deployment, deployed, dtype_problems
from pytest_llmperf.roofline.models import SHAPES, ModelShape, shape_from, shape_of

__all__ = ["SHAPES", "Deployment", "ModelShape", "deployed", "dtype_problems", "shape_from", "shape_of"]
