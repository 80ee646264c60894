"""What do the treatments cost? Time, throughput, memory and hits, and the cost of a lock."""
