"""Modules and losses as functions of flat vectors."""
