"""The options of the references, as their parsers have them, and every value of mmpretrain's DeiT configs.

huggingface/pytorch-image-models aa4b585, facebookresearch/deit 7e160fe, affjljoo3581/deit3-jax 753d01b and
open-mmlab/mmpretrain ee7f2e8. Of a config that repeats a pipeline, the first place stands for all.
"""

OPTIONS: dict[str, str] = {
    "timm: train.py": """
        -c --config data --data-dir --dataset --train-split --val-split --train-num-samples --val-num-samples
        --dataset-download --class-map --input-img-mode --input-key --target-key --dataset-trust-remote-code --model
        --pretrained --pretrained-path --initial-checkpoint --resume --no-resume-opt --num-classes --gp --img-size
        --in-chans --input-size --crop-pct --mean --std --interpolation -b --batch-size -vb --validation-batch-size
        --channels-last --fuser --grad-accum-steps --grad-checkpointing --fast-norm --model-kwargs --head-init-scale
        --head-init-bias --torchcompile-mode --torchscript --torchcompile --device --amp --amp-dtype --model-dtype
        --no-ddp-bb --synchronize-step --local_rank --device-modules --opt --opt-eps --opt-betas --momentum
        --weight-decay --clip-grad --clip-mode --layer-decay --layer-decay-min-scale --layer-decay-no-opt-scale
        --opt-kwargs --sched --sched-on-updates --lr --lr-base --lr-base-size --lr-base-scale --lr-noise
        --lr-noise-pct --lr-noise-std --lr-cycle-mul --lr-cycle-decay --lr-cycle-limit --lr-k-decay --warmup-lr
        --min-lr --epochs --epoch-repeats --start-epoch --decay-milestones --decay-epochs --warmup-epochs
        --warmup-prefix --cooldown-epochs --patience-epochs --decay-rate --dr --no-aug --train-crop-mode --scale
        --ratio --hflip --vflip --color-jitter --color-jitter-prob --grayscale-prob --gaussian-blur-prob --aa
        --aug-repeats --aug-splits --jsd-loss --bce-loss --bce-sum --bce-target-thresh --bce-pos-weight --reprob
        --remode --recount --resplit --mixup --cutmix --cutmix-minmax --mixup-prob --mixup-switch-prob --mixup-mode
        --mixup-off-epoch --smoothing --train-interpolation --drop --drop-connect --drop-path --drop-block
        --bn-momentum --bn-eps --sync-bn --dist-bn --split-bn --model-ema --model-ema-force-cpu --model-ema-decay
        --model-ema-warmup --seed --worker-seeding --log-interval --val-interval --recovery-interval --checkpoint-hist
        -j --workers --save-images --pin-mem --no-prefetcher --output --experiment --eval-metric --tta
        --use-multi-epochs-loader --log-wandb --wandb-project --wandb-tags --wandb-resume-id --train-img-sizes
        --train-batch-sizes --train-size-probs --train-size-schedule --train-size-schedule-spread
        --train-size-random-mix --train-batches-per-epoch --train-steps-per-epoch --variable-batch-loss-scale
        --naflex-loader --naflex-train-seq-lens --naflex-max-seq-len --naflex-patch-sizes --naflex-patch-size-probs
        --naflex-loss-scale --naflex-patchify-channels-first --kd-model-name --kd-distill-type --kd-loss-type
        --distill-loss-weight --task-loss-weight --kd-temperature --kd-student-feature-dim --kd-teacher-feature-dim
        --kd-token-distill-type
    """,
    "timm: validate.py": """
        data --data-dir --dataset --split --num-samples --dataset-download --class-map --input-key --input-img-mode
        --target-key --dataset-trust-remote-code --model -m --pretrained -j --workers -b --batch-size --img-size
        --in-chans --input-size --use-train-size --crop-pct --crop-mode --crop-border-pixels --mean --std
        --interpolation --num-classes --gp --log-freq --checkpoint --num-gpu --test-pool --no-prefetcher --pin-mem
        --channels-last --device --amp --amp-dtype --model-dtype --tf-preprocessing --use-ema --fuser --fast-norm
        --reparam --model-kwargs --torchcompile-mode --torchscript --torchcompile --aot-autograd --results-file
        --results-format --real-labels --valid-labels --retry --seed --metrics-avg --naflex-loader
        --naflex-max-seq-len
    """,
    "timm: inference.py": """
        data --data-dir --dataset --split --model -m -j --workers -b --batch-size --img-size --in-chans --input-size
        --use-train-size --crop-pct --crop-mode --mean --std --interpolation --num-classes --class-map --log-freq
        --checkpoint --pretrained --num-gpu --test-pool --channels-last --device --amp --amp-dtype --model-dtype
        --fuser --model-kwargs --torchcompile-mode --torchscript --torchcompile --aot-autograd --results-dir
        --results-file --results-format --results-separate-col --topk --fullname --filename-col --index-col
        --label-col --output-col --output-type --label-type --include-index --exclude-output --no-console-results
    """,
    "deit: main.py": """
        --batch-size --epochs --bce-loss --unscale-lr --model --input-size --drop --drop-path --model-ema
        --no-model-ema --model-ema-decay --model-ema-force-cpu --opt --opt-eps --opt-betas --clip-grad --momentum
        --weight-decay --sched --lr --lr-noise --lr-noise-pct --lr-noise-std --warmup-lr --min-lr --decay-epochs
        --warmup-epochs --cooldown-epochs --patience-epochs --decay-rate --dr --color-jitter --aa --smoothing
        --train-interpolation --repeated-aug --no-repeated-aug --train-mode --no-train-mode --ThreeAugment --src
        --reprob --remode --recount --resplit --mixup --cutmix --cutmix-minmax --mixup-prob --mixup-switch-prob
        --mixup-mode --teacher-model --teacher-path --distillation-type --distillation-alpha --distillation-tau
        --cosub --finetune --attn-only --data-path --data-set --inat-category --output_dir --device --seed --resume
        --start_epoch --eval --eval-crop-ratio --dist-eval --num_workers --pin-mem --no-pin-mem --distributed
        --world_size --dist_url
    """,
    "deit: run_with_submitit.py": """
        --ngpus --nodes --timeout --job_dir --partition --use_volta32 --comment
    """,
    "deit3-jax: src/main.py": """
        --train-dataset-shards --valid-dataset-shards --train-batch-size --valid-batch-size --train-loader-workers
        --valid-loader-workers --random-crop --color-jitter --auto-augment --random-erasing --augment-repeats
        --test-crop-ratio --mixup --cutmix --criterion --label-smoothing --layers --dim --heads --labels --layerscale
        --patch-size --image-size --posemb --pooling --dropout --droppath --grad-ckpt --init-seed --mixup-seed
        --dropout-seed --shuffle-seed --pretrained-ckpt --label-mapping --optimizer --learning-rate --weight-decay
        --adam-b1 --adam-b2 --adam-eps --lr-decay --clip-grad --grad-accum --warmup-steps --training-steps
        --log-interval --eval-interval --project --name --ipaddr --hostname --output-dir
    """,
    "deit3-jax: converters": """
        checkpoint --exclude-heads --num-heads --from-timm
    """,
    "mmpretrain: tools/train.py": """
        config --work-dir --resume --amp --no-validate --auto-scale-lr --no-pin-memory --no-persistent-workers
        --cfg-options --launcher --local_rank --local-rank
    """,
    "mmpretrain: tools/test.py": """
        config checkpoint --work-dir --out --out-item --cfg-options --amp --show-dir --show --interval --wait-time
        --no-pin-memory --tta --launcher --local_rank --local-rank
    """,
    "mmpretrain: configs": """
        dataset_type data_preprocessor.num_classes data_preprocessor.mean data_preprocessor.std
        data_preprocessor.to_rgb train_pipeline.LoadImageFromFile train_pipeline.RandomResizedCrop.scale
        train_pipeline.RandomResizedCrop.backend train_pipeline.RandomResizedCrop.interpolation
        train_pipeline.RandomFlip.prob train_pipeline.RandomFlip.direction train_pipeline.PackInputs
        test_pipeline.LoadImageFromFile test_pipeline.Resize.scale test_pipeline.Resize.backend
        test_pipeline.Resize.interpolation test_pipeline.PackInputs train_dataloader.batch_size
        train_dataloader.num_workers train_dataloader.dataset.type train_dataloader.dataset.data_root
        train_dataloader.dataset.split train_dataloader.sampler.type train_dataloader.sampler.shuffle
        val_dataloader.batch_size val_dataloader.num_workers val_dataloader.dataset.data_root
        val_dataloader.dataset.split val_dataloader.sampler.type val_dataloader.sampler.shuffle val_evaluator.type
        val_evaluator.topk test_evaluator.type test_evaluator.topk optim_wrapper.optimizer.type
        optim_wrapper.optimizer.lr optim_wrapper.optimizer.weight_decay optim_wrapper.paramwise_cfg.custom_keys
        optim_wrapper.clip_grad.max_norm param_scheduler.LinearLR.start_factor param_scheduler.LinearLR.by_epoch
        param_scheduler.LinearLR.begin param_scheduler.LinearLR.end param_scheduler.LinearLR.convert_to_iter_based
        param_scheduler.CosineAnnealingLR.T_max param_scheduler.CosineAnnealingLR.by_epoch
        param_scheduler.CosineAnnealingLR.begin param_scheduler.CosineAnnealingLR.end train_cfg.by_epoch
        train_cfg.max_epochs train_cfg.val_interval auto_scale_lr.base_batch_size default_scope
        default_hooks.timer.type default_hooks.logger.interval default_hooks.param_scheduler.type
        default_hooks.checkpoint.interval default_hooks.sampler_seed.type default_hooks.visualization.enable
        env_cfg.cudnn_benchmark env_cfg.mp_cfg.mp_start_method env_cfg.mp_cfg.opencv_num_threads
        env_cfg.dist_cfg.backend vis_backends.type visualizer.type log_level load_from resume randomness.seed
        randomness.deterministic model.type model.backbone.type model.backbone.arch model.backbone.img_size
        model.backbone.patch_size model.neck model.head.type model.head.num_classes model.head.in_channels
        model.head.loss.type model.head.loss.label_smooth_val model.head.loss.mode bgr_mean bgr_std
        train_pipeline.RandAugment.policies train_pipeline.RandAugment.num_policies
        train_pipeline.RandAugment.total_level train_pipeline.RandAugment.magnitude_level
        train_pipeline.RandAugment.magnitude_std train_pipeline.RandAugment.hparams.pad_val
        train_pipeline.RandAugment.hparams.interpolation train_pipeline.RandomErasing.erase_prob
        train_pipeline.RandomErasing.mode train_pipeline.RandomErasing.min_area_ratio
        train_pipeline.RandomErasing.max_area_ratio train_pipeline.RandomErasing.fill_color
        train_pipeline.RandomErasing.fill_std test_pipeline.ResizeEdge.scale test_pipeline.ResizeEdge.edge
        test_pipeline.ResizeEdge.backend test_pipeline.ResizeEdge.interpolation test_pipeline.CenterCrop.crop_size
        optim_wrapper.optimizer.eps optim_wrapper.optimizer.betas optim_wrapper.paramwise_cfg.norm_decay_mult
        optim_wrapper.paramwise_cfg.bias_decay_mult optim_wrapper.paramwise_cfg.flat_decay_mult
        param_scheduler.CosineAnnealingLR.eta_min model.init_cfg.type model.init_cfg.layer model.init_cfg.std
        model.init_cfg.val model.init_cfg.bias model.train_cfg.augments.type model.train_cfg.augments.Mixup.alpha
        model.train_cfg.augments.CutMix.alpha model.backbone.drop_path_rate custom_hooks.EMAHook.momentum
        custom_hooks.EMAHook.priority
    """,
}
"""By page and part of it, with blanks between."""
