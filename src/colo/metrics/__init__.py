"""Figures for Prometheus, and what goes with them: alert rules and a dashboard."""
