"""Makes adapters: data, recipes, training, evaluation. It depends on neither server nor vLLM."""

import logging

# When it is imported, it warns about an optional package that isn't needed here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
