"""Adapters: what a DVC stage runs, Prefect tasks, MLflow. Imports winnow, never flows."""
