"""What trained transformers do: importance of heads, pruning, probing, correspondence with the algorithm."""

from .assess import HeadImportance, head_importance
from .contents import LayerContents, layer_contents
from .correspondence import Correspondence, correspondence
from .probe import Probes, best_maps, probe
from .prune import Comparison, compare, keep_heads, prune_to_dominant

__all__ = [
    "Comparison",
    "Correspondence",
    "HeadImportance",
    "LayerContents",
    "Probes",
    "best_maps",
    "compare",
    "correspondence",
    "head_importance",
    "keep_heads",
    "layer_contents",
    "probe",
    "prune_to_dominant",
]
