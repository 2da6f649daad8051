"""Readers: one file for each layout of annotations that users have."""
