"""A causal language model on this machine: its files, its weights, its forward passes.

Everything here speaks of token ids and hidden states. It knows neither transcripts nor scores; the
scorers ask it, and so may the lab.
"""
