"""Decisions as plain functions: the clock, the state and the candidates are arguments, the choice is the result."""
