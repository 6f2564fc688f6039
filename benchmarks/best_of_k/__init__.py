"""Many calls, one answer: samples saved at equal quality, cascades, routing by neighbours."""
