"""TorchX components of deit_fast; an installed user has them as deit.pretrain, deit.finetune and deit.evaluate."""
