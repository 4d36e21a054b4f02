"""Accelerators: memory and peak rate of dense bf16 or fp16 products, from their makers' data sheets. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One kind of accelerator."""

    name: str
    """The maker's name for it, without the vendor."""
    memory_gib: float
    tflops: float
    """Peak rate of dense matrix products in bf16 (fp16 on older devices) summed in fp32; 10^12 per second."""


DEVICES: dict[str, Device] = {
    "b200": Device("B200", 180, 2250),
    "h200": Device("H200", 141, 989),
    "h100": Device("H100", 80, 989),
    "a100": Device("A100", 80, 312),
    "a100-40": Device("A100 40GB", 40, 312),
    "l40s": Device("L40S", 48, 362),
    "l4": Device("L4", 24, 121),
    "a10": Device("A10", 24, 125),
    "4090": Device("RTX 4090", 24, 165),
    "3090": Device("RTX 3090", 24, 71),
    "v100": Device("V100", 32, 125),
    "v100-16": Device("V100 16GB", 16, 125),
    "t4": Device("T4", 16, 65),
    "tpu-v4": Device("TPU v4", 32, 275),
}
"""Devices by the word that `deit-fast plan --gpus` takes. A TPU is listed because results were published for it."""


def device_named(text: str) -> Device | None:
    """The device named in a published text, such as "8 A100, 1 node", or by torch; None where there is none."""
    plain = text.lower().replace("-", " ").replace("geforce ", "")
    found = [each for each in DEVICES.values() if f" {each.name.lower()}" in f" {plain}".replace("nvidia ", "")]
    return max(found, key=lambda each: len(each.name), default=None)
