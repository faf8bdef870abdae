"""Addresses of registered models."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tracking.model_version import ModelUri

NAMES = st.text(st.characters(exclude_characters="@/", exclude_categories=("Cs",)), min_size=1)
ALIASES = st.text(string.ascii_letters + string.digits + "_-", min_size=1)
VERSIONS = st.integers(1, 10**6).map(str)


@given(NAMES, ALIASES)
def test_an_alias_is_parsed(name: str, alias: str) -> None:
    uri = ModelUri.parse(f"models:/{name}@{alias}")
    assert uri == ModelUri(name, alias=alias) and str(uri) == f"models:/{name}@{alias}"


@given(NAMES, VERSIONS)
def test_a_version_is_parsed(name: str, version: str) -> None:
    uri = ModelUri.parse(f"models:/{name}/{version}")
    assert uri == ModelUri(name, version=version) and str(uri) == f"models:/{name}/{version}"


@given(st.text(st.sampled_from("models:/@ab1-. \n"), max_size=20) | st.text(max_size=20).map("models:/".__add__))
def test_what_is_parsed_is_shown_as_it_was(text: str) -> None:
    try:
        uri = ModelUri.parse(text)
    except ValueError as error:
        assert "expected models:/NAME@ALIAS or models:/NAME/VERSION" in str(error)
    else:
        assert str(uri) == text and bool(uri.alias) != bool(uri.version)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "models:/plumbline",
        "models:/plumbline/",
        "models:/plumbline/x",
        "models:/plumbline/٣",
        "models:/plumbline@",
        "models:/plumbline@a b",
        "models:/plumbline/1@champion",
        "models:/a/b/1",
        "models:/@champion",
        " models:/plumbline/1",
        "models:/plumbline/1\n",
        "Models:/plumbline/1",
        "runs:/plumbline/1",
    ],
)
def test_another_form_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="expected models:/NAME@ALIAS"):
        ModelUri.parse(text)
