"""Warm POML: a Node process that stays."""
