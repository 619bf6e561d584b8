"""The command `vae-fast`: training, testing and sampling of VAEs. Needs `pip install vae_fast[train]`."""
