from __future__ import annotations

import numpy as np

from winnow.evaluation.unit_vectors import centred_unit_vectors


def test_products_are_cosines_of_centred_features() -> None:
    rows_MD = np.random.default_rng(0).uniform(0, 1, (50, 8)).astype(np.float32)
    rows_MD[7] = rows_MD.mean(0)
    unit_MD = centred_unit_vectors(rows_MD)
    expected_MM = np.corrcoef((rows_MD - rows_MD.mean(0)) @ np.eye(8))
    assert expected_MM.shape == (50, 50)
    np.testing.assert_allclose(np.linalg.norm(np.delete(unit_MD, 7, axis=0), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(centred_unit_vectors(rows_MD + 5), unit_MD, atol=1e-2)  # an offset does not matter
    assert np.isfinite(centred_unit_vectors(np.ones((3, 4), dtype=np.float32))).all()
