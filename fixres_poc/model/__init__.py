"""Networks: backbones, the split into trunk and tail, weights, checkpoints, device and memory."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "backbones": ["create"],
        "device": ["accelerator_for", "place"],
        "memory_plan": ["budget_bytes", "step_plans", "step_table"],
        "tracing": ["parameters_and_flops"],
        "trunk": ["Tail", "Trunk", "last_batch_norm"],
    },
)
