"""A finished run as a network to use: predictions, evaluation, export; and a network of one's own, adapted."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"own_network": ["adapt"]})
