"""Images: which, from where, how they are decoded, transformed and loaded, and whether they leak."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dataset": ["ImageDataset", "image_sizes", "load_dataset", "object_boxes"],
        "leakage.audit": ["check_leakage"],
        "loading": ["SplitImages", "images_to_show", "read_image"],
        "transforms": ["as_array", "get_transforms", "plain_transforms", "resized_side"],
    },
)
