"""The section `data`: from files to sequences."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from trainer.config.section import Count, Section, Share, complaint

PersonalDataKind = Literal["email", "iban", "card", "national_id", "ip", "phone"]
NamedKind = Literal["name", "place"]
Column = str | Annotated[int, Field(ge=0)]


class SourceConfig(Section):
    """Input files, and how often they are drawn from.

    `weight` is this source's share of the samples, relative to the other sources. Without weights all sources are one
    data set, of which every sample comes once an epoch. `begin` and `end` take a part of each file (shares of its bytes,
    moved on to the next line), so that one file can serve for training and validation. `target_path` is the file whose
    lines are the translations of those in `path`.
    """

    path: Annotated[str, Field(min_length=1)]
    target_path: Annotated[str, Field(min_length=1)] | None = None
    weight: Annotated[float, Field(gt=0.0)] | None = None
    begin: Share = 0.0
    end: Share = 1.0

    @model_validator(mode="after")
    def _begin_comes_before_end(self) -> SourceConfig:
        if self.begin >= self.end:
            raise complaint("end", f"{self.end}", f"more than `begin`, which is {self.begin}")
        if self.target_path is not None and (self.begin, self.end) != (0.0, 1.0):
            raise complaint("target_path", repr(self.target_path), "no `begin` or `end` where two files go side by side")
        return self


class FieldsConfig(Section):
    """Which field of a record holds what: a name, or, in CSV and TSV files without a header line, a column number from 0.

    Each task has fields of its own (`trainer.config.tasks`). `text_b` is the second of two texts, where there are two. Records
    with the same `group` (an author, a patient) are never in different folds.
    """

    text: Column = "text"
    text_b: Column | None = None
    label: Column = "label"
    source: Column = "source"
    target: Column = "target"
    document: Column = "document"
    summary: Column = "summary"
    context: Column = "context"
    question: Column = "question"
    answers: Column = "answers"
    group: Column | None = None


class TokenizerConfig(Section):
    """How text becomes tokens: trained by `prepare` on the training sources, or read from anywhere.

    `pretrained` reads a `tokenizer.json`, or a folder that has one, or vocabulary files. `lowercase` is for `word`, whose
    tokens are the most frequent words, and `wordpiece`.
    """

    kind: Literal["bpe", "wordpiece", "word", "character", "pretrained"]
    vocabulary_size: Annotated[int, Field(ge=2)] | None = None
    lowercase: bool = False
    path: str | None = None

    @model_validator(mode="after")
    def _options_belong_to_the_kind(self) -> TokenizerConfig:
        trained = self.kind in ("bpe", "wordpiece", "word")
        if trained and self.vocabulary_size is None:
            raise complaint("vocabulary_size", "nothing", f"the number of tokens that a {self.kind} tokenizer shall have")
        if trained and self.vocabulary_size is not None and self.vocabulary_size < 300:
            raise complaint("vocabulary_size", f"{self.vocabulary_size}", "at least 300: the 256 bytes come first")
        if not trained and self.vocabulary_size is not None:
            raise complaint("vocabulary_size", f"{self.vocabulary_size}", f"nothing: a {self.kind} tokenizer brings its own")
        if self.lowercase and self.kind not in ("word", "wordpiece"):
            raise complaint("lowercase", "true", f"it only with word and wordpiece: a {self.kind} tokenizer keeps all there is")
        if self.kind == "pretrained" and self.path is None:
            raise complaint("path", "nothing", "the tokenizer.json to use, or its folder")
        if self.kind != "pretrained" and self.path is not None:
            raise complaint("path", repr(self.path), f"nothing: a {self.kind} tokenizer is trained, not read")
        return self


class MaskingConfig(Section):
    """What masked language modelling hides: a share `rate` of the tokens, by whole words where asked for (Devlin et al.
    2019, arXiv:1810.04805: of those 80% become the mask token, 10% another token, and 10% stay)."""

    rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    whole_words: bool = False


class AugmentationConfig(Section):
    """Changes to training texts, each drawn anew whenever a sample comes, as a function of its place in the run's order.

    Shares are those of a text's tokens: dropped, swapped with the next one, masked in spans of `span_length`, or replaced
    after the file `replacements` (a line: a word, a tab, and what may stand for it, separated by commas). `mixup` is the
    parameter of the Beta distribution that two samples of a classification are mixed with (Zhang et al. 2018,
    arXiv:1710.09412; of the sentences' representations as in Guo et al. 2019, arXiv:1905.08941). A share
    `back_translation` of the texts is replaced by what the file `back_translations` has for them (a line: a text, a tab,
    the text translated there and back).
    """

    token_dropout: Share = 0.0
    token_swap: Share = 0.0
    span_masking: Share = 0.0
    span_length: Count = 3
    replacement: Share = 0.0
    replacements: str | None = None
    back_translation: Share = 0.0
    back_translations: str | None = None
    mixup: Annotated[float, Field(ge=0.0)] = 0.0

    @property
    def is_off(self) -> bool:
        shares = (self.token_dropout, self.token_swap, self.span_masking, self.replacement, self.back_translation, self.mixup)
        return not any(shares)

    @model_validator(mode="after")
    def _files_where_they_are_needed(self) -> AugmentationConfig:
        for share, file in (("replacement", "replacements"), ("back_translation", "back_translations")):
            if bool(getattr(self, share)) != (getattr(self, file) is not None):
                raise complaint(file, f"{getattr(self, file)!r}", f"a file where `{share}` is above 0, and none otherwise")
        return self


class FoldsConfig(Section):
    """Cross-validation: the training samples are divided into `number` folds. The run is evaluated on the fold `held_out`
    (counted from 0) instead of the validation data, and trained on the others (Stone 1974). Which samples are in which fold
    follows from their numbers and `seed` alone (`trainer.data.folds`): runs that hold out other folds share the store."""

    number: Annotated[int, Field(ge=2)]
    held_out: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1

    @model_validator(mode="after")
    def _held_out_is_one_of_them(self) -> FoldsConfig:
        if self.held_out >= self.number:
            raise complaint("held_out", f"{self.held_out}", f"less than `number`, which is {self.number}")
        return self


class PersonalDataConfig(Section):
    """What `prepare` does with personal data that it finds in texts (`trainer.data.personal_data`): `mask` writes its kind in
    its place, `drop` leaves out the text that has it. `name` and `place` have no form of their own: Presidio finds them by a
    spaCy model, `language_model`, the name of an installed one or a folder."""

    action: Literal["mask", "drop"]
    kinds: Annotated[tuple[PersonalDataKind | NamedKind, ...], Field(min_length=1, strict=False)] = get_args(PersonalDataKind)
    language_model: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _names_need_a_model(self) -> PersonalDataConfig:
        named = [kind for kind in self.kinds if kind in get_args(NamedKind)]
        if named and self.language_model is None:
            raise complaint("language_model", "null", f"a spaCy model, such as en_core_web_lg, to find each {named[0]}")
        if not named and self.language_model is not None:
            raise complaint("language_model", self.language_model, "nothing without the kinds name or place")
        return self


class DecontaminationConfig(Section):
    """Training texts are left out that have `words` words in a row in common with a validation text, or a whole one that has
    fewer words, but `least_words` of them (`trainer.data.overlap`)."""

    words: Annotated[int, Field(ge=2)] = 13
    least_words: Annotated[int, Field(ge=2)] = 5

    @model_validator(mode="after")
    def _shorter_texts_are_shorter(self) -> DecontaminationConfig:
        if self.least_words > self.words:
            raise complaint("least_words", f"{self.least_words}", f"at most `words`, which is {self.words}")
        return self


class DuplicatesConfig(Section):
    """Training texts are left out that are there before already (`trainer.data.duplicates`): `exact` the same, `near` those
    that share `similarity` of their runs of five words with one that is kept."""

    kind: Literal["exact", "near"]
    similarity: Annotated[float, Field(ge=0.5, le=1.0)] = 0.8

    @model_validator(mode="after")
    def _similarity_is_near(self) -> DuplicatesConfig:
        if self.kind == "exact" and self.similarity != DuplicatesConfig.model_fields["similarity"].default:
            raise complaint("similarity", f"{self.similarity}", "nothing with kind exact")
        return self


class DataConfig(Section):
    """From files to sequences. `store` is the folder that `prepare` fills and training maps into memory.

    `sequence_length` counts tokens: of an encoder-decoder's source, with `target_length` for its target (default: the
    same). `pack` fills rows: true makes one stream of the documents of a language model and cuts it, and puts whole
    samples of other tasks side by side by best fit, which `best_fit` asks for in language models too; false pads each.
    The default is true for language models, translation and summarization.

    `labels` names the classes in order (default: those found in the training data, sorted); with `multi_label` a text may
    have several. `prompt` is what a model reads instead of the bare source, which stands for `{source}` in it. Contexts that
    are longer than a sequence are read in windows that share `window_overlap` tokens, and an answer has at most
    `answer_length`. With `folds` a part of the training samples is what is validated. With `personal_data` texts are
    searched for it before anything else is made of them; with `decontamination` training texts are searched for those that
    validate, with `duplicates` for each other.
    """

    store: Annotated[str, Field(min_length=1)]
    train: Annotated[tuple[SourceConfig, ...], Field(min_length=1, strict=False)]
    validation: Annotated[tuple[SourceConfig, ...], Field(strict=False)] = ()
    format: Literal["text", "lines", "jsonl", "csv", "tsv", "parquet", "squad"] = "text"
    fields: FieldsConfig = FieldsConfig()
    sequence_length: Annotated[int, Field(ge=2)]
    target_length: Annotated[int, Field(ge=2)] | None = None
    pack: bool | Literal["best_fit"] | None = None
    labels: Annotated[tuple[str, ...], Field(min_length=2, strict=False)] | None = None
    multi_label: bool = False
    prompt: str | None = None
    window_overlap: Count = 64
    answer_length: Count = 30
    masking: MaskingConfig = MaskingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    folds: FoldsConfig | None = None
    personal_data: PersonalDataConfig | None = None
    decontamination: DecontaminationConfig | None = None
    duplicates: DuplicatesConfig | None = None
    tokenizer: TokenizerConfig

    @field_validator("train")
    @classmethod
    def _weights_on_all_or_none(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        weighted = [source.weight is not None for source in sources]
        if any(weighted) and not all(weighted):
            missing = weighted.index(False)
            raise complaint(missing, "no `weight`", "a weight on every source, or on none", "weight")
        return sources

    @field_validator("validation")
    @classmethod
    def _validation_is_not_a_mixture(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        for number, source in enumerate(sources):
            if source.weight is not None:
                raise complaint(number, f"{source.weight}", "no weight: validation sources are read as one data set", "weight")
        return sources

    @field_validator("prompt")
    @classmethod
    def _prompt_has_one_place_for_the_source(cls, prompt: str | None) -> str | None:
        if prompt is not None and prompt.count("{source}") != 1:
            raise ValueError(f"got {prompt!r}, expected a text with {{source}} in it once")
        return prompt

    @model_validator(mode="after")
    def _columns_by_number_only_in_tables(self) -> DataConfig:
        for name in FieldsConfig.model_fields:
            column = getattr(self.fields, name)
            if isinstance(column, int) and self.format not in ("csv", "tsv"):
                raise complaint(
                    "fields", f"column {column}", f"a name: files of format {self.format} have no column numbers", name
                )
        return self
