"""What `__init__.py` imports when it is asked for."""
from . import adapters as adapters
from . import backtracking as backtracking
from . import cli as cli
from . import comparisons as comparisons
from . import core as core
from . import data as data
from . import degradation as degradation
from . import diffusion as diffusion
from . import downloads as downloads
from . import edges as edges
from . import edm as edm
from . import engine as engine
from . import evaluation as evaluation
from . import files as files
from . import folders as folders
from . import images as images
from . import lab as lab
from . import losses as losses
from . import metrics as metrics
from . import mismatch as mismatch
from . import mixtures as mixtures
from . import networks as networks
from . import openai as openai
from . import options as options
from . import paths as paths
from . import pickles as pickles
from . import pipelines as pipelines
from . import plots as plots
from . import pretraining as pretraining
from . import recipes as recipes
from . import runs as runs
from . import samplers as samplers
from . import stages as stages
from . import text as text
from . import widgets as widgets
from .backtracking import Backtracking as Backtracking, Ramp as Ramp
from .degradation import Degradation as Degradation, EqualDrift as EqualDrift
from .metrics import energy_distance as energy_distance
from .mismatch import score_mismatch as score_mismatch
from .mixtures import GaussianMixture as GaussianMixture, ring_mixture as ring_mixture
from .networks import OneStep as OneStep, ResMLP as ResMLP, UNet as UNet
from .paths import DegradationPath as DegradationPath
from .plots import filmstrip as filmstrip
from .pretraining import Pretraining as Pretraining
from .runs import progress as progress
from .samplers import sample as sample

__all__ = ["Backtracking", "Degradation", "DegradationPath", "EqualDrift", "GaussianMixture", "OneStep",
           "Pretraining", "Ramp", "ResMLP", "UNet", "energy_distance", "filmstrip", "progress",
           "ring_mixture", "sample", "score_mismatch"]
__version__: str
