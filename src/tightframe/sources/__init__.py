"""Where things come from: pictures and backbones."""
