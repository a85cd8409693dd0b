//! Tokenizers and chat templates against Hugging Face's output: `testdata/golden/tokenizers`, made by
//! `scripts/make_golden.py`. Real tokenizers are too large to commit: those tests say what is missing and pass.

use std::fs;
use std::path::{Path, PathBuf};

use lingqu_tokenizer::{
    ChatMessage, ChatTemplate, DecodeStream, EncodeOptions, GgufVocabulary, HuggingFaceFiles, RenderOptions, Tokenizer,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn golden(file: &str) -> PathBuf {
    root().join("testdata/golden/tokenizers").join(file)
}

fn read<T: DeserializeOwned>(path: &Path) -> T {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[derive(Deserialize)]
struct Golden {
    #[serde(default)]
    needs: Option<String>,
    add_bos: bool,
    bos: Option<u32>,
    cases: Vec<Case>,
    decode_cases: Vec<DecodeCase>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[derive(Deserialize)]
struct DecodeCase {
    ids: Vec<u32>,
    decoded: String,
}

/// Ids, text, and text token by token.
fn check_tokenizer(name: &str, tokenizer: &Tokenizer, golden: &Golden) {
    let parse = EncodeOptions { add_special_tokens: false, parse_special: true };
    let mut wrong = Vec::new();
    for case in &golden.cases {
        let ids = tokenizer.encode(&case.text, parse).unwrap();
        if ids != case.ids {
            wrong.push(format!("{:?}\n  expected {:?}\n  got      {ids:?}", case.text, case.ids));
        }
        let mut with_bos = case.ids.clone();
        if golden.add_bos {
            with_bos.insert(0, golden.bos.expect("a bos that is added"));
        }
        if ids == case.ids && tokenizer.encode(&case.text, EncodeOptions::PROMPT).unwrap() != with_bos {
            wrong.push(format!("{:?}: bos", case.text));
        }
    }
    let decodes = golden.cases.iter().map(|c| (&c.ids, &c.decoded));
    for (ids, decoded) in decodes.chain(golden.decode_cases.iter().map(|c| (&c.ids, &c.decoded))) {
        let text = tokenizer.decode(ids, false);
        let mut stream = DecodeStream::new(false);
        let mut streamed: String = ids.iter().map(|&id| stream.push(tokenizer, id)).collect();
        streamed += &stream.finish();
        if &text != decoded || &streamed != decoded {
            wrong.push(format!("{ids:?}\n  expected {decoded:?}\n  got      {text:?}\n  streamed {streamed:?}"));
        }
    }
    assert!(wrong.is_empty(), "{name}: {} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(golden.add_bos, tokenizer.adds_bos(), "{name}");
}

fn from_folder(folder: &Path) -> Tokenizer {
    let json = fs::read(folder.join("tokenizer.json")).unwrap();
    let config = fs::read(folder.join("tokenizer_config.json")).ok();
    let files = HuggingFaceFiles {
        tokenizer_json: &json,
        tokenizer_config_json: config.as_deref(),
        ..HuggingFaceFiles::default()
    };
    Tokenizer::from_huggingface(files).unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
}

#[test]
fn small_tokenizers_from_tokenizer_json() {
    for name in ["llama-bpe", "qwen2", "deepseek-v3", "deepseek-r1-qwen", "smollm"] {
        check_tokenizer(name, &from_folder(&golden(name)), &read(&golden(&format!("{name}.golden.json"))));
    }
}

#[test]
fn small_tokenizers_from_gguf() {
    #[derive(Deserialize)]
    struct Vocabulary {
        model: String,
        pre: String,
        tokens: Vec<String>,
        token_type: Vec<i32>,
        merges: Vec<String>,
        bos: Option<u32>,
        eos: Option<u32>,
        add_bos: Option<bool>,
    }
    for name in ["llama-bpe", "qwen2", "deepseek-v3", "deepseek-r1-qwen", "smollm"] {
        let v: Vocabulary = read(&golden(&format!("{name}/gguf_vocab.json")));
        let tokenizer = Tokenizer::from_gguf(GgufVocabulary {
            model: v.model,
            pre: Some(v.pre),
            tokens: v.tokens,
            token_types: v.token_type,
            merges: v.merges,
            bos_id: v.bos,
            eos_id: v.eos,
            add_bos: v.add_bos,
            ..GgufVocabulary::default()
        });
        let tokenizer = tokenizer.unwrap_or_else(|e| panic!("{name}: {e}"));
        check_tokenizer(name, &tokenizer, &read(&golden(&format!("{name}.golden.json"))));
    }
}

/// What a golden file needs, if it is there.
fn needed(golden: &Golden) -> Option<PathBuf> {
    let path = root().join(golden.needs.as_ref().expect("a real tokenizer's source"));
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there (scripts/fetch_tokenizers.sh and fetch_smollm2.sh get it)", path.display());
    None
}

#[test]
fn real_tokenizers_from_tokenizer_json() {
    for name in ["deepseek-r1", "deepseek-v3", "qwen3", "llama3.1"] {
        let golden: Golden = read(&golden(&format!("real-{name}.golden.json")));
        if let Some(path) = needed(&golden) {
            let tokenizer = from_folder(path.parent().expect("a folder"));
            // The packages' tokenizer_config.json turns DeepSeek's bos off; the release's own turns it on.
            let golden =
                if name.starts_with("deepseek") { Golden { add_bos: tokenizer.adds_bos(), ..golden } } else { golden };
            check_tokenizer(name, &tokenizer, &golden);
        }
    }
}

#[test]
fn real_smollm2_from_gguf() {
    let golden: Golden = read(&golden("real-smollm2.golden.json"));
    let Some(path) = needed(&golden) else { return };
    let checkpoint = lingqu_checkpoint::Checkpoint::open(&path).unwrap();
    let gguf = checkpoint.gguf().expect("a GGUF file");
    let text = |key: &str| gguf.str(key).unwrap().map(str::to_owned);
    let list =
        |key: &str| gguf.str_array(key).unwrap().into_iter().flat_map(|all| all.iter().map(str::to_string)).collect();
    let tokenizer = Tokenizer::from_gguf(GgufVocabulary {
        model: text("tokenizer.ggml.model").unwrap(),
        pre: text("tokenizer.ggml.pre"),
        tokens: list("tokenizer.ggml.tokens"),
        token_types: gguf.i32_array("tokenizer.ggml.token_type").unwrap().unwrap_or_default(),
        merges: list("tokenizer.ggml.merges"),
        bos_id: gguf.u32("tokenizer.ggml.bos_token_id").unwrap(),
        eos_id: gguf.u32("tokenizer.ggml.eos_token_id").unwrap(),
        add_bos: gguf.bool("tokenizer.ggml.add_bos_token").unwrap(),
        chat_template: text("tokenizer.chat_template"),
        ..GgufVocabulary::default()
    });
    check_tokenizer("smollm2", &tokenizer.unwrap(), &golden);
}

#[derive(Deserialize)]
struct ChatGolden {
    template: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Chat {
    title: String,
    messages: Vec<ChatMessage>,
    add_generation_prompt: bool,
    #[serde(default)]
    tools: Option<Vec<serde_json::Value>>,
    rendered: Option<String>,
}

#[test]
fn chats_render_as_in_transformers() {
    let mut wrong = Vec::new();
    for name in [
        "deepseek-r1",
        "deepseek-r1-think",
        "deepseek-v3",
        "llama3.1",
        "own-features",
        "qwen3",
        "r1-distill-qwen",
        "smollm2",
    ] {
        let golden: ChatGolden = read(&golden(&format!("chat-{name}.golden.json")));
        let template = ChatTemplate::new(&golden.template).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut extra = serde_json::Map::new();
        for (key, token) in [("bos_token", golden.bos_token), ("eos_token", golden.eos_token)] {
            extra.extend(token.map(|token| (key.to_owned(), token.into())));
        }
        for chat in golden.chats {
            let options = RenderOptions {
                add_generation_prompt: chat.add_generation_prompt,
                tools: chat.tools.unwrap_or_default(),
                extra: extra.clone(),
                now_unix_s: None,
            };
            let rendered = template.render(&chat.messages, &options);
            if rendered.as_ref().ok() != chat.rendered.as_ref() {
                wrong.push(format!("{name}: {}\n  expected {:?}\n  got      {rendered:?}", chat.title, chat.rendered));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
