import reticle
from reticle import maskers as m

data = reticle.load_tensors("examples/data/attention_4096.safetensors")  # recorded in a small language model
q, k, v = (data[f"layers.3.{name}"] for name in ("queries", "keys", "values"))  # (batch, heads, length, head_dim)
maskers = [m.SinkConfig(sink_size=128), m.LocalConfig(window_size=128), m.OracleTopKConfig(heavy_size=0.1)]
output, mask, metrics = m.pipeline(maskers, causal=True).measure(q, k, v)
print(f"{mask}\nerror {metrics['relative_error']:.3f}, attention mass {metrics['mean_mass']:.3f}")
