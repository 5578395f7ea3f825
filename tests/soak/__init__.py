"""The agent for a long time among all that comes and goes on a node: it loses no scrape, and what it holds is flat."""
