"""Makes adapters: data, recipes, training, evaluation. Knows nothing of the server or of vLLM."""

import logging

# At its import it warns of an optional package that nothing here needs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
