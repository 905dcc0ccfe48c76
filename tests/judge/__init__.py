"""Is any read older than its bound? Four processes, real servers, faults, and a judge apart."""
