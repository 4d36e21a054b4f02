"""Docker's containers on this machine, which show as processes to those who may see them."""

from .local_cwd import Local

SCHEDULER = Local()
