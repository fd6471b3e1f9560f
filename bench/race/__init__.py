"""Races of every op and of the whole training step against every other way to compute them."""
