"""The only place that touches BPF: binding, object, maps, rings, and what this kernel can do."""
