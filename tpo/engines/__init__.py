"""The only place that imports Ray, vLLM and TRL: engines that sample, workers that train."""
