//! Damaged and hostile tokenizer files: an error that names the field, never a panic.

use lingqu_tokenizer::{EncodeOptions, GgufVocabulary, HuggingFaceFiles, Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::{Value, json};

const SMALL: &str = include_str!("../../../testdata/golden/tokenizers/qwen2/tokenizer.json");

fn load(json: &[u8]) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_huggingface(HuggingFaceFiles { tokenizer_json: json, ..HuggingFaceFiles::default() })
}

#[test]
fn wrong_fields_are_named() {
    let check = |says: &str, edit: &dyn Fn(&mut Value)| {
        let mut json: Value = serde_json::from_str(SMALL).unwrap();
        edit(&mut json);
        let error = load(json.to_string().as_bytes()).expect_err(says).to_string();
        assert!(error.contains(says), "{says}: {error}");
    };
    check("model", &|j| j["model"] = Value::Null);
    check("model.type \"Unigram\"", &|j| j["model"]["type"] = "Unigram".into());
    check("vocab", &|j| j["model"]["vocab"] = json!({}));
    check("token 4000000000", &|j| j["model"]["vocab"]["zz"] = 4_000_000_000u32.into());
    check("is given twice", &|j| j["model"]["vocab"]["zzzz"] = 0.into());
    check("not in 1..=4096", &|j| j["model"]["vocab"]["z".repeat(5000)] = 9_999.into());
    check("merges[0]", &|j| j["model"]["merges"][0] = "onlyone".into());
    check("merges: \"nosuchtoken\"", &|j| j["model"]["merges"][1] = json!(["a", "nosuchtoken"]));
    // Both parts exist, what they make does not: the library would write past its buffer's end.
    check("merges[0]", &|j| {
        j["model"]["vocab"]["q".repeat(900)] = 5_000.into();
        j["model"]["merges"][0] = json!(["q".repeat(900), "q".repeat(900)]);
    });
    check("is given twice", &|j| j["added_tokens"][0]["id"] = 0.into());
    check("pre_tokenizer \"FixedLength\"", &|j| j["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0}));
    check("pre_tokenizer", &|j| j["pre_tokenizer"] = Value::Null);
    check("pre_tokenizer", &|j| {
        j["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}]});
    });
    check("normalizer \"Precompiled\"", &|j| {
        j["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    });
    check("decoder \"WordPiece\"", &|j| j["decoder"] = json!({"type": "WordPiece"}));
    check("post_processor", &|j| {
        j["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}]});
    });
    check("end_of_word_suffix", &|j| j["model"]["end_of_word_suffix"] = "</w>".into());
}

#[test]
fn wrong_gguf_keys_are_named() {
    let check = |says: &str, edit: &dyn Fn(&mut GgufVocabulary)| {
        let mut v = GgufVocabulary {
            model: "gpt2".into(),
            pre: Some("qwen2".into()),
            tokens: ["a", "b", "ab", "<end>"].map(String::from).into(),
            token_types: vec![1, 1, 1, 3],
            merges: vec!["a b".into()],
            eos_id: Some(3),
            ..GgufVocabulary::default()
        };
        let tokenizer = Tokenizer::from_gguf(v.clone()).expect("right as it is");
        assert_eq!(tokenizer.encode("abba<end>", EncodeOptions::CHAT).unwrap(), [2, 1, 0, 3]);
        assert_eq!((tokenizer.eos_ids(), tokenizer.is_special(3)), ([3].as_slice(), true));
        edit(&mut v);
        let error = Tokenizer::from_gguf(v).expect_err(says).to_string();
        assert!(error.contains(says), "{says}: {error}");
    };
    check("tokenizer.ggml.model \"llama\"", &|v| v.model = "llama".into());
    check("tokenizer.ggml.pre \"falcon\"", &|v| v.pre = Some("falcon".into()));
    check("tokenizer.ggml.pre \"(missing)\"", &|v| v.pre = None);
    check("tokenizer.ggml.token_type", &|v| v.token_types.truncate(2));
    check("eos_token_id", &|v| v.eos_id = Some(4));
    check("merges[0]", &|v| v.merges[0] = "a  b".into());
    check("merges: \"ba\"", &|v| v.merges[0] = "b a".into());
    check("chat_template", &|v| v.chat_template = Some("{% if %}".into()));
    check("token 1", &|v| v.tokens[1] = "a".into());
    check("token 1", &|v| v.tokens[1] = String::new());
}

#[test]
fn every_named_pre_tokenizer_is_made() {
    for pre in
        ["llama-bpe", "qwen2", "deepseek-v3", "deepseek-r1-qwen", "deepseek-llm", "deepseek-coder", "smollm", "gpt-2"]
    {
        let tokenizer = Tokenizer::from_gguf(GgufVocabulary {
            model: "gpt2".into(),
            pre: Some(pre.into()),
            tokens: ["a", "b", "ab", "1"].map(String::from).into(),
            merges: vec!["a b".into()],
            ..GgufVocabulary::default()
        });
        let tokenizer = tokenizer.unwrap_or_else(|e| panic!("{pre}: {e}"));
        assert_eq!(tokenizer.encode("ab1b", EncodeOptions::CHAT).unwrap(), [2, 3, 1], "{pre}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_do_not_panic(
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        length in any::<proptest::sample::Index>(),
        cut in proptest::bool::weighted(0.1),
        text in ".{0,40}",
    ) {
        let mut bytes = SMALL.as_bytes().to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cut {
            bytes.truncate(length.index(bytes.len()));
        }
        if let Ok(tokenizer) = load(&bytes) {
            let ids = tokenizer.encode(&text, EncodeOptions::default());
            prop_assert!(ids.is_ok());
        }
    }
}
