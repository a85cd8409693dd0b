use serde_json::json;

use super::*;

fn messages(rows: &[(&str, &str)]) -> Vec<ChatMessage> {
    rows.iter().map(|(role, content)| ChatMessage::new(*role, *content)).collect()
}

fn chat() -> Vec<ChatMessage> {
    messages(&[("system", "Be brief."), ("user", "1<2 & 你好\n\"q\""), ("assistant", "ok"), ("user", "bye")])
}

fn render(source: &str) -> Result<String, ChatTemplateError> {
    ChatTemplate::new(source)?.render(&chat(), &RenderOptions::default())
}

/// What transformers renders: `testdata/make_jinja.py`.
#[test]
fn renders_as_transformers() {
    #[derive(Deserialize)]
    struct Golden {
        now_unix_s: i64,
        messages: Vec<ChatMessage>,
        context: serde_json::Map<String, serde_json::Value>,
        rows: Vec<Row>,
    }
    #[derive(Deserialize)]
    struct Row {
        source: String,
        rendered: String,
    }
    let golden: Golden = serde_json::from_str(include_str!("../../testdata/jinja.json")).unwrap();
    let options = RenderOptions {
        add_generation_prompt: true,
        tools: golden.context["tools"].as_array().cloned().unwrap(),
        extra: golden.context,
        now_unix_s: Some(golden.now_unix_s),
    };
    let mut wrong = Vec::new();
    for row in &golden.rows {
        let rendered = ChatTemplate::new(&row.source).and_then(|t| t.render(&golden.messages, &options));
        if rendered.as_ref() != Ok(&row.rendered) {
            wrong.push(format!("{}\n  expected {:?}\n  got      {rendered:?}", row.source, row.rendered));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn tool_turns_reach_the_template() {
    let calls = json!([{"type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2}"}}]);
    let turn = ChatMessage {
        role: "assistant".into(),
        tool_calls: calls.as_array().cloned().unwrap_or_default(),
        reasoning_content: Some("hm".into()),
        ..ChatMessage::default()
    };
    let source = "{% for m in messages %}{{ m.content is none }}{{ m.reasoning_content }}\
                  {{ m.tool_calls[0]['function']['arguments'] + '\\n' }}{{ m.tool_calls | tojson }}{% endfor %}";
    let rendered = ChatTemplate::new(source).unwrap().render(&[turn], &RenderOptions::default()).unwrap();
    assert_eq!(
        rendered,
        "Truehm{\"b\": 1, \"a\": 2}\n[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": \
         \"{\\\"b\\\": 1, \\\"a\\\": 2}\"}}]"
    );
}

#[test]
fn errors_are_told_apart() {
    let check = |source: &str, kind: fn(&ChatTemplateError) -> bool, says: &str| {
        let error = render(source).expect_err(source);
        assert!(kind(&error) && error.to_string().contains(says), "{source}: {error:?}");
    };
    let syntax = |e: &ChatTemplateError| matches!(e, ChatTemplateError::Syntax(_));
    let raised = |e: &ChatTemplateError| matches!(e, ChatTemplateError::Raised(_));
    let other = |e: &ChatTemplateError| matches!(e, ChatTemplateError::Render(_));
    check("{% if %}", syntax, "chat_template");
    check("{{ a", syntax, "");
    check("{% block b %}{{ self.b() }}{% endblock %}", syntax, "blocks");
    check("{{ raise_exception('roles must alternate') }}", raised, "roles must alternate");
    check("{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}", raised, "deep");
    check("{{ messages[0].a.b }}", other, "undefined");
    check("{{ missing + 'a' }}", other, "cannot add");
    check("{{ 1 | nofilter }}", other, "filter");
    check("{% include 'x' %}", other, "");
    check("{{ 'x'.nomethod() }}", other, "method");
}

/// Each of these would eat memory, time or the stack of an engine without bounds.
#[test]
fn bombs_are_errors() {
    let sources = [
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{{ 'a' * 99999999 }}",
        "{{ ('a') * 99999999 }}",
        "{{ 99999999 * ('a') }}",
        "{{ 'a' * 9999 * 9999 * 9999 }}",
        "{% set n = 99999999 %}{% set s = 'a' %}{{ s * n }}",
        "{% set ns = namespace(l=[1, 2]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = {'a': ns.l, 'b': ns.l} %}{% endfor %}",
        "{% set ns = namespace(l=1) %}{% for i in range(60) %}{% set ns.l = (ns.l, ns.l) %}{% endfor %}",
        "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns | tojson }}",
        "{% set a = namespace() %}{% set b = namespace() %}{% set a.x = b %}{% set b.x = a %}{{ a == b }}",
        "{% set a = namespace() %}{% set b = namespace() %}{% set a.x = b %}{% set b.x = a %}{{ a in [b] }}",
        "{% set a = namespace() %}{% set b = namespace() %}{% set a.x = b %}{% set b.x = a %}{{ a < b }}",
        "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('aaaa') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set x = 'a' %}{% for i in range(1) recursive %}{{ loop([1]) }}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s.replace('a', 'aaaa') %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}\
         {% set ns.s = ns.s | replace('a', 'aaaa') %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | join('') %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}\
         {% set ns.s = ns.s.join([ns.s, ns.s, ns.s]) %}{% endfor %}",
        "{% set ns = namespace(s='aaa') %}{% for i in range(60) %}{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}\
         {% set ns.s = x %}{% endfor %}",
        "{{ 'a\nb' | indent(999999999) }}",
        "{{ {'a': [[[1]]]} | tojson(indent=999999999) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format('a') }}",
        "{{ range(0, 99999999999) | list }}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(20) %}{% set ns.s = ns.s + ns.s %}{% endfor %}\
         {% for i in range(100000) %}{{ ns.s }}{% endfor %}",
        "{% set ns = namespace(n=9) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    ];
    // On a small stack, as a server's threads have, and unoptimised at that.
    let run = move || {
        for source in sources {
            let started = std::time::Instant::now();
            let error = render(source).expect_err(source);
            assert!(!error.to_string().is_empty());
            assert!(started.elapsed().as_secs() < 20, "{source}: {:?}", started.elapsed());
        }
        let deep = format!("{}1{}", "{{ ".to_owned() + &"[".repeat(5000), "]".repeat(5000));
        assert!(matches!(render(&deep), Err(ChatTemplateError::Syntax(_))));
        let long = "x".repeat(SOURCE_BYTES_MAX + 1);
        assert!(matches!(render(&long), Err(ChatTemplateError::Syntax(_))));
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap();
}

#[test]
fn long_conversations_are_no_bombs() {
    let source = "{% set ns = namespace(all='') %}{% for m in messages %}{% if m['role'] == 'user' %}\
                  {{ '<user>' + m['content'] }}\
                   {% else %}{{ '<assistant>' + m['content'] | trim }}{% endif %}{% endfor %}";
    let template = ChatTemplate::new(source).unwrap();
    let turns: Vec<ChatMessage> = (0..20_000)
        .map(|i| ChatMessage::new(if i % 2 == 0 { "user" } else { "assistant" }, "字".repeat(100)))
        .collect();
    let rendered = template.render(&turns, &RenderOptions::default()).unwrap();
    assert_eq!(rendered.len(), 20_000 * 300 + 10_000 * ("<user>".len() + "<assistant>".len()));
}

#[test]
fn literal_products_are_refused_and_splats_are_not() {
    let check = |source: &str, ok: bool| assert_eq!(ChatTemplate::new(source).is_ok(), ok, "{source}");
    check("{{ a * 3 }}{{ 2 * a }}{{ a * b }}", true);
    check("{{ f(*a) }}{{ f(1, *a) }}{{ f(**a) }}", true);
    check("{{ 'a' * 3 }}", false);
    check("{{ 3 * 'a' }}", false);
    check("{{ [1] * 3 }}", false);
    check("{{ a * (b) }}", false);
}
