"""Adam as torch.optim.Adam does it, in one pass over the weights, without what making a torch optimiser imports.

Every torch.optim.Optimizer imports torch._dynamo, which takes a second of each training process; the public functional
form does not.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.adam import adam


class Adam:
    """Kingma and Ba's Adam with betas 0.9 and 0.999 and epsilon 1e-8; what the trainer asks of a torch optimiser.

    parameters: their gradients are used where there are some; lr: learning rate.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float):
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": lr}]
        self.state: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        moved = [parameter for parameter in self.param_groups[0]["params"] if parameter.grad is not None]
        for parameter in moved:
            if parameter not in self.state:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
        averages, squares, steps = (
            [self.state[parameter][name] for parameter in moved] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        adam(
            moved, [parameter.grad for parameter in moved], averages, squares, [], steps, fused=True,
            amsgrad=False, beta1=0.9, beta2=0.999, lr=self.param_groups[0]["lr"], weight_decay=0.0, eps=1e-8,
            maximize=False,
        )  # fmt: skip

    def state_dict(self) -> dict[int, dict[str, torch.Tensor]]:
        """Return steps and moments by the parameter's place."""
        places = {parameter: place for place, parameter in enumerate(self.param_groups[0]["params"])}
        return {places[parameter]: dict(moments) for parameter, moments in self.state.items()}

    def load_state_dict(self, state: dict[int, dict[str, torch.Tensor]]) -> None:
        """Take up what `state_dict` gave."""
        parameters = self.param_groups[0]["params"]
        self.state = {parameters[place]: dict(moments) for place, moments in state.items()}
