"""The usual names of settings in other trainers, and this project's words and options for them.

One table for words (`optim.learning_rate=1`), recipe files and options (`--learning-rate 1`). Its names are those of
timm, DeiT, deit3-jax, mmpretrain, Ultralytics, transformers and Lightning. Nothing here imports torch.
"""

import difflib
from functools import cache

from deit_fast.recipe.sections import Augment, Data, Distill, Loss, Mix, Model, Optim, Run, Schedule, Section

NAMES: dict[str, str] = {
    # A key, or a key and its value, or an option of `deit-fast train`: their names, separated by spaces.
    "optim.lr": "learning_rate base_lr lr0 lrate max_lr peak_lr init_lr blr",
    "optim.name": "opt optimizer optimiser optim",
    "optim.weight_decay": "wd",
    "optim.layer_decay": "layerwise_decay layer_lr_decay lr_layer_decay llrd lr_decay",
    "optim.max_grad_norm": "clip_grad grad_clip clip_grad_norm gradient_clip_val gradient_clipping max_norm clip",
    "optim.ema_decay": "model_ema_decay model_ema ema",
    "optim.eps": "opt_eps adam_eps adam_epsilon epsilon",
    "optim.betas": "opt_betas beta1 beta2 adam_b1 adam_b2 adam_beta1 adam_beta2",
    'optim.trainable="attention"': "attn_only",
    'optim.trainable="head"': "freeze freeze_backbone linear_probe linear_probing",
    "schedule.epochs": "num_epochs max_epochs n_epochs num_train_epochs train_epochs total_epochs training_epochs "
    "training_steps max_steps total_steps num_steps",
    "schedule.warmup_epochs": "warmup warmup_steps warmup_iters num_warmup_steps warmup_ratio",
    "schedule.warmup_lr": "warmup_init_lr warmup_start_lr warmup_lr_init",
    "schedule.min_lr": "lr_min eta_min final_lr end_lr",
    "run.global_batch": "batch_size batch bs train_batch_size global_batch_size total_batch_size "
    "per_device_train_batch_size batch_size_per_gpu samples_per_gpu micro_batch_size",
    "run.accumulation": "accum_iter accum_steps grad_accum grad_accum_steps gradient_accumulation "
    "gradient_accumulation_steps accumulate_grad_batches update_freq accumulation_steps",
    "run.precision": "amp amp_dtype mixed_precision dtype fp16 bf16 half use_amp",
    "run.compile": "torch_compile compile_model use_compile",
    "run.parallel": "fsdp ddp strategy distributed_strategy",
    "run.grad_checkpointing": "grad_ckpt gradient_checkpointing use_checkpoint checkpointing activation_checkpointing "
    "with_cp",
    "run.seed": "random_seed manual_seed rng_seed",
    "run.mix_seed": "mixup_seed",
    "run.order_seed": "shuffle_seed",
    "run.log_every": "log_interval log_freq print_freq logging_steps log_every_n_steps log_steps",
    "run.eval_every": "val_interval eval_interval eval_freq val_freq check_val_every_n_epoch eval_steps",
    "run.checkpoint_every": "checkpoint_interval save_every save_freq save_interval save_steps save_period",
    "run.keep_checkpoints": "checkpoint_hist save_total_limit save_top_k max_keep_ckpts keep_last",
    "run.trackers": "report_to log_wandb wandb tensorboard logger use_wandb tracker",
    "run.device": "accelerator",
    "model.name": "model arch architecture backbone model_name patch_size layers depth heads num_heads dim embed_dim",
    "model.image_size": "input_size img_size imgsz resolution img_res crop_size image_res",
    "model.num_classes": "nb_classes n_classes num_labels classes",
    "model.drop_path": "drop_path_rate stochastic_depth drop_path_prob sd_rate",
    "model.dropout": "drop drop_rate dropout_rate hidden_dropout_prob",
    "model.layer_scale": "init_values layer_scale_init_value layer_scale_init",
    "model.pool": "global_pool pooling",
    "model.position": "pos_embed posemb position_embedding pos_embed_type",
    "model.activation": "act act_layer hidden_act",
    "loss.smoothing": "label_smoothing label_smooth label_smoothing_factor label_smooth_val",
    "loss.name": "criterion loss loss_fn",
    "loss.name=bce": "bce_loss bce",
    "mix.mixup": "mixup_alpha",
    "mix.cutmix": "cutmix_alpha",
    "mix.prob": "mixup_prob mix_prob",
    "mix.switch_prob": "mixup_switch_prob",
    "mix.mode": "mixup_mode",
    "augment.policy": "aa auto_augment rand_augment three_augment",
    "augment.erase": "re_prob random_erasing random_erase erasing",
    "augment.erase_mode": "re_mode",
    "augment.erase_count": "re_count",
    "augment.flip": "hflip fliplr horizontal_flip random_flip",
    "augment.crop": "src train_crop_mode random_crop simple_random_crop",
    "augment.interpolation": "train_interpolation",
    "augment.color_jitter": "jitter colour_jitter",
    "data.eval_crop_ratio": "crop_pct test_crop_ratio crop_ratio",
    "data.eval_interpolation": "interpolation test_interpolation",
    "data.repeats": "aug_repeats augment_repeats num_repeats repeated_augmentation",
    "data.repeats=3": "repeated_aug",
    "data.val_fraction": "val_ratio validation_fraction val_size val_pct",
    "data.category": "inat_category",
    "distill.kind": "distillation_type kd_distill_type",
    "distill.teacher": "teacher_model kd_model_name",
    "distill.alpha": "distillation_alpha kd_alpha",
    "distill.tau": "distillation_tau temperature kd_temperature",
    "--data": "data_dir data_path data_root dataset_path train_dir root train_dataset_shards",
    "--val": "val_split validation_split val_dir val_path valid_dataset_shards val_data",
    "--out": "output output_dir work_dir project save_dir out_dir log_dir run_dir",
    "--init": "finetune initial_checkpoint pretrained pretrained_ckpt pretrained_path weights load_from init_from",
    "--teacher": "teacher_path",
    "--resume": "auto_resume resume_from resume_from_checkpoint resume_path",
}
"""Every name stands here once; dashes, underscores and case are ignored, and a key is found by its own name too."""

ABSENT: dict[str, str] = {
    "a process uses its share of the cores": "workers num_workers n_workers dataloader_num_workers "
    "train_loader_workers",
    "the loader puts its batches on the device": "pin_mem pin_memory no_pin_mem prefetch prefetch_factor",
    "every recipe is a linear warmup and a cosine": "sched scheduler lr_scheduler lr_scheduler_type sched_type cos_lr",
    "the content of --data says what it is": "dataset dataset_type dataset_name",
    "run.global_batch is divided among the processes that torchrun starts": "gpus ngpus num_gpus n_gpu world_size",
}
"""Names of settings that do not exist here, by the reason."""

_SECTIONS: tuple[type[Section], ...] = (Model, Data, Augment, Mix, Loss, Distill, Optim, Schedule, Run)


def meant_by(name: str) -> str:
    """The key (`optim.lr`), word (`loss.name=bce`) or option (`--out`) that a setting's name stands for; "" for none.

    The name may be another trainer's, or a key of any section without its section; a key of several sections is none.
    """
    return _meanings().get(_plain(name), "")


def hint(name: str) -> str:
    """` (did you mean 'optim.lr'?)`, or why there is no such setting; "" where the name is unknown."""
    if meant := meant_by(name):
        return f" (did you mean {meant!r}?)"
    reason = _reasons().get(_plain(name))
    return f" (there is no such setting: {reason})" if reason else ""


def near_hint(name: str) -> str:
    """`hint` of the known name that is spelled nearly so; "" without one."""
    close = difflib.get_close_matches(_plain(name), [*_meanings(), *_reasons()], n=1, cutoff=0.85)
    return hint(close[0]) if close else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


@cache
def _meanings() -> dict[str, str]:
    """What each plain name stands for: the keys of a single section, and other trainers' names, which come first."""
    owners: dict[str, list[str]] = {}
    for section in _SECTIONS:
        for key in dict.fromkeys(key for kind in (section, *section.kinds().values()) for key in kind.model_fields):
            owners.setdefault(_plain(key), []).append(f"{section.__name__.lower()}.{key}")
    own = {name: keys[0] for name, keys in owners.items() if len(keys) == 1}
    theirs = {_plain(name): meant for meant, names in NAMES.items() for name in names.split()}
    return {**own, **theirs}


@cache
def _reasons() -> dict[str, str]:
    return {_plain(name): reason for reason, names in ABSENT.items() for name in names.split()}
