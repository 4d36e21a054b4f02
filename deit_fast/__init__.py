"""deit_fast: DeiT III vision transformers, trained fast and faithfully."""
