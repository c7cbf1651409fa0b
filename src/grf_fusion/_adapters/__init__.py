"""Fusion inside other people's models."""
