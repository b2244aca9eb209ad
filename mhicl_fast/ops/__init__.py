"""The operators: public function, fake kernel and derivatives of each, side by side.

How every operator is differentiated:

* First-order reverse mode is the kernel's own backward operator, in eager mode and under `torch.compile`.
* The backward operator is differentiated in turn through the plain-PyTorch definition in `reference`, so
  `create_graph=True` keeps the kernel's first derivatives and gets right higher ones.
* Under `torch.func` transforms and in forward mode the whole operator computes through its definition. A registered
  autograd formula alone would give zero tangents there without a word.

`transformer_step` and `transformer_predict` are differentiated nowhere: the first returns gradients itself.
"""

from .. import _extension as _extension  # first: it loads the compiled operators
from .attention import attention
from .prompt_attention import prompt_attention, prompt_moments
from .transformer import transformer_predict, transformer_step

__all__ = ["attention", "prompt_attention", "prompt_moments", "transformer_predict", "transformer_step"]
