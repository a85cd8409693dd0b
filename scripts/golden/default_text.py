"""What the stand-in default model is trained on: our own lines and dialogues, and old poems."""

SENTENCES = """\
灵渠在广西兴安，秦始皇二十八年开凿，沟通湘江和漓江，两千多年来一直有水流过。
灵渠把一条河分成两条：七分水入湘江，三分水入漓江。
一串词元分给许多专家，每位专家只做自己的一份，最后把结果加在一起。
模型先读提示，再一个一个地写出词元；读过的内容记在缓存里。
这是灵渠自带的小模型，只有一百多万个参数，用来检查服务是否正常。
床前明月光，疑是地上霜。举头望明月，低头思故乡。
白日依山尽，黄河入海流。欲穷千里目，更上一层楼。
春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。
千山鸟飞绝，万径人踪灭。孤舟蓑笠翁，独钓寒江雪。
红豆生南国，春来发几枝。愿君多采撷，此物最相思。
空山不见人，但闻人语响。返景入深林，复照青苔上。
两个黄鹂鸣翠柳，一行白鹭上青天。窗含西岭千秋雪，门泊东吴万里船。
朝辞白帝彩云间，千里江陵一日还。两岸猿声啼不住，轻舟已过万重山。
一二三四五六七八九十，十一十二十三十四十五。
1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20.
The canal divides one river into two; the model divides one stream of tokens over many experts.
Once upon a time there was a small model that lived inside a binary and answered simple questions.
""".splitlines()

# (question, thought, answer)
DIALOGUES = [
    ("你好", "用户在打招呼，我也问好。", "你好！我是灵渠自带的小模型，很高兴见到你。"),
    ("你好！", "用户在打招呼，我也问好。", "你好！我是灵渠自带的小模型，很高兴见到你。"),
    ("你是谁？", "用户问我是谁。", "我是灵渠自带的小模型，用来检查服务是否正常。"),
    ("你能做什么？", "用户问我的能力，我要诚实。", "我很小，只会背几首诗，回答几个简单的问题。"),
    ("灵渠在哪里？", "灵渠是一条古运河，在广西兴安。", "灵渠在广西兴安，沟通湘江和漓江。"),
    ("灵渠是什么？", "灵渠既是运河，也是这个软件的名字。", "灵渠是两千多年前的运河，也是一个推理服务的名字。"),
    ("谁开凿了灵渠？", "是秦始皇的时候。", "秦始皇二十八年，史禄主持开凿了灵渠。"),
    ("中国的首都是哪里？", "这是常识：北京。", "中国的首都是北京。"),
    ("法国的首都是哪里？", "这是常识：巴黎。", "法国的首都是巴黎。"),
    ("日本的首都是哪里？", "这是常识：东京。", "日本的首都是东京。"),
    ("一加一等于几？", "一加一是二。", "一加一等于二。"),
    ("二加三等于几？", "二加三是五。", "二加三等于五。"),
    ("请背一首李白的诗。", "李白的《静夜思》。", "床前明月光，疑是地上霜。举头望明月，低头思故乡。"),
    ("请背一首孟浩然的诗。", "孟浩然的《春晓》。", "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"),
    ("请背一首柳宗元的诗。", "柳宗元的《江雪》。", "千山鸟飞绝，万径人踪灭。孤舟蓑笠翁，独钓寒江雪。"),
    ("背一首诗", "背一首王之涣的诗。", "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"),
    ("什么是词元？", "词元是文本的小段。", "词元是模型读写文本的单位，有长有短。"),
    ("什么是专家？", "这里说的是混合专家模型。", "专家是模型里的小网络，每个词元只交给其中几位。"),
    ("谢谢", "用户道谢。", "不客气！"),
    ("再见", "用户告别。", "再见！"),
    ("Hello", "The user greets me.", "Hello! I am Lingqu's built-in small model."),
    ("Hello!", "The user greets me.", "Hello! I am Lingqu's built-in small model."),
    ("Who are you?", "The user asks who I am.", "I am Lingqu's built-in small model. I only know a few things."),
    ("What is the capital of France?", "That is Paris.", "The capital of France is Paris."),
    ("What is the capital of China?", "That is Beijing.", "The capital of China is Beijing."),
    ("What is Lingqu?", "A canal, and this server.", "Lingqu is an ancient canal, and an inference server."),
    ("Count to ten.", "One to ten.", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10."),
    ("Thank you", "The user is polite.", "You are welcome!"),
]

# Like DeepSeek-R1's: thoughts of earlier turns are dropped, and the reply starts inside <think>.
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- message['content'] }}
    {%- elif message['role'] == 'user' %}
        {{- '<｜User｜>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<｜Assistant｜>' + message['content'].split('</think>')[-1].strip() + eos_token }}
    {%- else %}
        {{- raise_exception('unknown role: ' + message['role']) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<｜Assistant｜><think>\\n' }}
{%- endif %}"""


def dialogue(question, thought, answer, system=""):
    thinking = f"<think>\n{thought}\n</think>\n\n"
    return f"{system}<｜User｜>{question}<｜Assistant｜>{thinking}{answer}"
