"""Small trained networks that come with the package, each with a card that says what was measured."""

from tf_robust_sparse.pretrained.catalog import list_pretrained, load_pretrained, pretrained_card
from tf_robust_sparse.pretrained.model_card import model_card

__all__ = ["list_pretrained", "load_pretrained", "model_card", "pretrained_card"]
