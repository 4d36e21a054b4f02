#!/usr/bin/env bash
# torch 2.13.0 (and 2.14.1): how often the step hooks of an optimizer run depends on which other optimizers the process
# has made before.
#
# A subclass of torch.optim.AdamW overrides step() and calls super().step(), as many optimizers do. Its step hooks,
# registered with register_step_pre_hook and register_step_post_hook, run once per step, unless a plain AdamW was made
# earlier in the same process, anywhere: from then on they run twice per step, the second time inside the first.
#
# Why (torch/optim/optimizer.py, Optimizer._patch_step_function): the constructor wraps the `step` of the class of which
# an instance is made, once, in the function that calls the hooks. The subclass gets its wrapper, and AdamW its own as
# soon as one is made; super().step() then goes through both, with the same instance and so with the same hooks.
#
# A hook that counts, hands gradients over, unscales them or waits for a copy then acts twice. Seen here as weights that
# do not move: the hook moved the gradients from the sharded model to the optimizer, and the second call found none.
#
# Output seen:
#   torch 2.13.0+cpu
#   alone                    ['pre', 'post']
#   after a plain AdamW      ['pre', 'pre', 'post', 'post']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'torch==2.13.0' 'numpy==2.2.6'
cat >"$work/hooks.py" <<'PYTHON'
import torch


class Decorated(torch.optim.AdamW):
    def step(self, closure=None):
        return super().step(closure)


def hooks_of_a_step():
    weight = torch.zeros(1, requires_grad=True)
    optimizer, seen = Decorated([weight]), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    weight.grad = torch.ones(1)
    optimizer.step()
    return seen


print("torch", torch.__version__)
alone = hooks_of_a_step()
print("alone                   ", alone)
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
after = hooks_of_a_step()
print("after a plain AdamW     ", after)
assert alone == ["pre", "post"], "changed: once, alone"
assert after == ["pre", "pre", "post", "post"], "changed: twice, after a plain AdamW"
PYTHON
"$work/venv/bin/python" "$work/hooks.py"
