"""`colo check`: what would refuse a VM file later, found now; nothing is changed by it."""
