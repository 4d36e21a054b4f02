"""Options that a pipeline passes to TorchX: those of .torchxconfig, overridden by the command line."""

from pathlib import Path

from deit_fast.components.arguments import parse_pairs, parse_switch
from torchx.runner import Runner
from torchx.runner.config import apply, load_sections
from torchx.specs import CfgVal

from .schedulers import find_scheduler
from .state import PipelineError, explain


def component_defaults(file: Path) -> dict[str, dict[str, str]]:
    """The [component:deit.NAME] sections of .torchxconfig, for components addressed by file."""
    sections = load_sections("component")
    return {f"{file}:{name}": sections.get(f"deit.{name}", {}) for name in ("pretrain", "finetune", "evaluate")}


def scheduler_options(runner: Runner, scheduler: str, text: str) -> dict[str, CfgVal]:
    """The options of `--cfg KEY=VALUE,...` and of .torchxconfig, and the defaults of the scheduler's module.

    Raises PipelineError for an option that the scheduler does not have.
    """
    try:
        known = runner.scheduler_run_opts(scheduler)
    except Exception as error:  # for example a missing client package
        raise PipelineError(f"--scheduler {scheduler}: {explain(error)}") from error
    names = [name for name, _ in known]
    cfg: dict[str, CfgVal] = {}
    for name, value in parse_pairs("cfg", text).items():
        option = known.get(name)
        if option is None:
            raise PipelineError(f"--cfg {name}: no such option of {scheduler}; expected one of {', '.join(names)}")
        if option.opt_type is bool:
            cfg[name] = parse_switch(f"cfg {name}", value)
        elif option.opt_type is str:
            cfg[name] = value
        else:
            try:
                cfg |= known.cfg_from_str(f"{name}={value}")
            except ValueError as error:
                raise PipelineError(f"--cfg {name}={value!r}: expected {option.opt_type} ({explain(error)})") from error
    apply(scheduler, cfg)
    for name, default in find_scheduler(scheduler).defaults.items():
        if name in names:
            cfg.setdefault(name, default)
    return cfg
