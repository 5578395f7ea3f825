"""Grafana's dashboards: one file each, made of the shapes in `panels`, and the JSON that `make generate` writes."""
