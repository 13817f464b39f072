"""What Pacemaker wants of colo: a resource agent, and what both of them ask the cluster."""
