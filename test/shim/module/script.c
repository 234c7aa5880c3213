// The script: a text file that is read at C_Initialize and again, from the beginning, whenever another file stands in
// its place (rename a new one over it). One statement a line; # begins a comment.
//
//   C_WrapKey: return CKR_DEVICE_ERROR times 2     a rule: what happens to calls of a function; * is any function
//   token removed                                  what holds as long as the script says it: see STATES below
//
// What a rule may do (ACTIONS below):
//
//   return CKR_X | return 0x80000001    delay 1ms | delay 20us       hang | crash | exit
//   busy 1ms                            a delay in which no other call with such a rule goes on: a device that does one at a time
//   session lost | sessions lost        objects stale | login lost   token removed
//   output garbage|truncated|plaintext|zero          of C_WrapKey, C_Sign, C_Encrypt; garbage of C_GetAttributeValue
//   query +8 | query -8                              the answer to a length query; the same functions
//   length +8 | length -8                            the length that comes with the output; the same functions
//   oaep sha1                                        of C_WrapKey
//   answer lost CKR_X                                the call is done, and then CKR_X is answered: who called does not learn that it was
//
// and when, in this order, each optional:
//
//   after 3         not the first three calls
//   one in 20       each call with this probability (`seed 7` makes another sequence)
//   times 2         only so many times
//   until C_Login   until a call of that function has succeeded
//
// A line that cannot be read ends the process: a test must not run without the fault that it is about.
#include "shim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct rule {
	int function; // enum function, or -1 for any
	enum action action;
	CK_RV rv;
	long number;  // of a delay in microseconds, of query and length
	int output;
	long after, one_in, times; // times: -1 without end
	int until;    // enum function, or -1
	long seen;
	bool ended;
};

enum { MOST_RULES = 128, MOST_MECHANISMS = 32 };
static struct script {
	char path[4096];
	struct stat file;
	unsigned long reading; // how often it was read
	struct rule rules[MOST_RULES];
	size_t count;
	bool removed;
	CK_MECHANISM_TYPE add[MOST_MECHANISMS], drop[MOST_MECHANISMS];
	size_t adds, drops;
	long sessions_limit, max_sessions, max_rw_sessions;
	CK_FLAGS flags;
	unsigned long random;
} script;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t device = PTHREAD_MUTEX_INITIALIZER; // of BUSY

// CKRS is the answers that have a name in scripts; every other is written as a number.
#define CKRS(F) \
	F(CKR_HOST_MEMORY) F(CKR_SLOT_ID_INVALID) F(CKR_GENERAL_ERROR) F(CKR_FUNCTION_FAILED) F(CKR_ARGUMENTS_BAD) F(CKR_CANT_LOCK) \
	F(CKR_ATTRIBUTE_READ_ONLY) F(CKR_ATTRIBUTE_SENSITIVE) F(CKR_ATTRIBUTE_TYPE_INVALID) F(CKR_ATTRIBUTE_VALUE_INVALID) \
	F(CKR_DATA_INVALID) F(CKR_DATA_LEN_RANGE) F(CKR_DEVICE_ERROR) F(CKR_DEVICE_MEMORY) F(CKR_DEVICE_REMOVED) \
	F(CKR_FUNCTION_CANCELED) F(CKR_FUNCTION_NOT_SUPPORTED) F(CKR_KEY_HANDLE_INVALID) F(CKR_KEY_SIZE_RANGE) \
	F(CKR_KEY_TYPE_INCONSISTENT) F(CKR_KEY_FUNCTION_NOT_PERMITTED) F(CKR_KEY_NOT_WRAPPABLE) F(CKR_KEY_UNEXTRACTABLE) \
	F(CKR_MECHANISM_INVALID) F(CKR_MECHANISM_PARAM_INVALID) F(CKR_OBJECT_HANDLE_INVALID) F(CKR_OPERATION_ACTIVE) \
	F(CKR_OPERATION_NOT_INITIALIZED) F(CKR_PIN_INCORRECT) F(CKR_PIN_INVALID) F(CKR_PIN_LEN_RANGE) F(CKR_PIN_EXPIRED) \
	F(CKR_PIN_LOCKED) F(CKR_SESSION_CLOSED) F(CKR_SESSION_COUNT) F(CKR_SESSION_HANDLE_INVALID) F(CKR_SESSION_READ_ONLY) \
	F(CKR_TEMPLATE_INCOMPLETE) F(CKR_TEMPLATE_INCONSISTENT) F(CKR_TOKEN_NOT_PRESENT) F(CKR_TOKEN_NOT_RECOGNIZED) \
	F(CKR_TOKEN_WRITE_PROTECTED) F(CKR_USER_ALREADY_LOGGED_IN) F(CKR_USER_NOT_LOGGED_IN) F(CKR_USER_PIN_NOT_INITIALIZED) \
	F(CKR_USER_TYPE_INVALID) F(CKR_USER_ANOTHER_ALREADY_LOGGED_IN) F(CKR_USER_TOO_MANY_TYPES) F(CKR_WRAPPED_KEY_INVALID) \
	F(CKR_WRAPPING_KEY_HANDLE_INVALID) F(CKR_WRAPPING_KEY_SIZE_RANGE) F(CKR_WRAPPING_KEY_TYPE_INCONSISTENT) F(CKR_RANDOM_NO_RNG) \
	F(CKR_BUFFER_TOO_SMALL) F(CKR_CRYPTOKI_NOT_INITIALIZED) F(CKR_CRYPTOKI_ALREADY_INITIALIZED)
#define AS_CKR(name) { #name, name },
static const struct { const char *name; CK_RV rv; } ckrs[] = { CKRS(AS_CKR) };

// ACTIONS is what a rule may say, and the form of what follows.
enum form { NOTHING, A_CKR, A_DURATION, A_NUMBER, AN_OUTPUT };
static const struct { const char *words; enum action action; enum form form; } actions[] = {
	{ "return", RETURN, A_CKR }, { "delay", DELAY, A_DURATION }, { "busy", BUSY, A_DURATION }, { "hang", HANG, NOTHING }, { "crash", CRASH, NOTHING },
	{ "exit", EXIT, NOTHING }, { "session lost", LOSE_SESSION, NOTHING }, { "sessions lost", LOSE_SESSIONS, NOTHING },
	{ "objects stale", STALE_OBJECTS, NOTHING }, { "login lost", LOSE_LOGIN, NOTHING }, { "token removed", REMOVE_TOKEN, NOTHING },
	{ "output", OUTPUT, AN_OUTPUT }, { "query", QUERY, A_NUMBER }, { "length", LENGTH, A_NUMBER }, { "oaep sha1", OAEP_SHA1, NOTHING },
	{ "answer lost", LOSE_ANSWER, A_CKR },
};
static const char *const outputs[] = { "garbage", "truncated", "plaintext", "zero" };

static void refuse(int line, const char *what) {
	fprintf(stderr, "fault shim: %s:%d: %s\n", script.path, line, what);
	_exit(99);
}

static int function_named(const char *name) {
	for (int i = 0; i < FUNCTION_COUNT; i++)
		if (strcmp(name, function_names[i]) == 0)
			return i;
	return -1;
}

// words takes "a b" off the front of *text; false if something else is there.
static bool words(char **text, const char *w) {
	size_t n = strlen(w);
	if (strncmp(*text, w, n) != 0 || ((*text)[n] != ' ' && (*text)[n] != 0))
		return false;
	*text += n;
	*text += strspn(*text, " ");
	return true;
}

// word takes the next word; an empty one at the end.
static char *word(char **text) {
	char *w = *text;
	*text += strcspn(w, " ");
	if (**text != 0)
		*(*text)++ = 0;
	*text += strspn(*text, " ");
	return w;
}

static long number(int line, char **text) {
	char *end, *w = word(text);
	long n = strtol(w, &end, 0);
	if (*w == 0 || *end != 0)
		refuse(line, "a number is missing");
	return n;
}

static void read_argument(int line, struct rule *r, enum form form, char **text) {
	char *w, *end;
	bool known = false;
	switch (form) {
	case NOTHING:
		return;
	case A_NUMBER:
		r->number = number(line, text);
		return;
	case A_DURATION:
		w = word(text);
		r->number = strtol(w, &end, 10);
		known = end != w;
		if (strcmp(end, "s") == 0) r->number *= 1000000;
		else if (strcmp(end, "ms") == 0) r->number *= 1000;
		else known = known && strcmp(end, "us") == 0;
		break;
	case A_CKR:
		w = word(text);
		for (size_t i = 0; i < sizeof ckrs / sizeof *ckrs; i++)
			if (strcmp(w, ckrs[i].name) == 0) {
				r->rv = ckrs[i].rv;
				known = true;
			}
		if (!known) {
			r->rv = strtoul(w, &end, 16);
			known = strncmp(w, "0x", 2) == 0 && *end == 0;
		}
		break;
	case AN_OUTPUT:
		w = word(text);
		for (int i = 0; i < (int)(sizeof outputs / sizeof *outputs); i++)
			if (strcmp(w, outputs[i]) == 0) {
				r->output = i;
				known = true;
			}
		break;
	}
	if (!known)
		refuse(line, "what the rule does is not known");
}

static void read_rule(int line, int function, char *text) {
	struct rule r = { .function = function, .output = -1, .times = -1, .until = -1 };
	size_t i = 0;
	while (i < sizeof actions / sizeof *actions && !words(&text, actions[i].words))
		i++;
	if (i == sizeof actions / sizeof *actions)
		refuse(line, "what the rule does is not known");
	r.action = actions[i].action;
	read_argument(line, &r, actions[i].form, &text);
	if (words(&text, "after")) r.after = number(line, &text);
	if (words(&text, "one in")) r.one_in = number(line, &text);
	if (words(&text, "times")) r.times = number(line, &text);
	if (words(&text, "until") && (r.until = function_named(word(&text))) < 0)
		refuse(line, "no such function");
	if (*text != 0)
		refuse(line, "something is left over");
	if (script.count == MOST_RULES)
		refuse(line, "too many rules");
	script.rules[script.count++] = r;
}

// STATES: what holds as long as the script says it.
static void read_state(int line, char *text) {
	if (words(&text, "token removed")) script.removed = true;
	else if (words(&text, "token max-sessions")) script.max_sessions = number(line, &text);       // CK_TOKEN_INFO.ulMaxSessionCount
	else if (words(&text, "token max-rw-sessions")) script.max_rw_sessions = number(line, &text); // CK_TOKEN_INFO.ulMaxRwSessionCount
	else if (words(&text, "token flags")) script.flags = (CK_FLAGS)number(line, &text);           // added to CK_TOKEN_INFO.flags
	else if (words(&text, "sessions limit")) script.sessions_limit = number(line, &text);         // CKR_SESSION_COUNT from then on
	else if (words(&text, "mechanism add") && script.adds < MOST_MECHANISMS) script.add[script.adds++] = (CK_MECHANISM_TYPE)number(line, &text);
	else if (words(&text, "mechanism remove") && script.drops < MOST_MECHANISMS) script.drop[script.drops++] = (CK_MECHANISM_TYPE)number(line, &text);
	else if (words(&text, "seed")) script.random = (unsigned long)number(line, &text) * 2654435761u + 1;
	else refuse(line, "this is not a statement");
	if (*text != 0)
		refuse(line, "something is left over");
}

// reread reads the script if it is another file than before. The lock is held.
static void reread(void) {
	struct stat now;
	char buffer[1024];
	if (*script.path == 0 || stat(script.path, &now) != 0)
		return;
	if (script.reading > 0 && now.st_ino == script.file.st_ino && now.st_mtim.tv_sec == script.file.st_mtim.tv_sec &&
	    now.st_mtim.tv_nsec == script.file.st_mtim.tv_nsec && now.st_size == script.file.st_size)
		return;
	FILE *f = fopen(script.path, "re");
	if (f == NULL)
		return;
	script.file = now;
	script.reading++;
	script.count = script.adds = script.drops = 0;
	script.removed = false;
	script.sessions_limit = script.max_sessions = script.max_rw_sessions = -1;
	script.flags = 0;
	script.random = 88172645463325252u;
	for (int line = 1; fgets(buffer, sizeof buffer, f) != NULL; line++) {
		char *text = buffer + strspn(buffer, " \t"), *colon;
		text[strcspn(text, "#\r\n")] = 0;
		for (size_t n = strlen(text); n > 0 && text[n - 1] == ' '; n--)
			text[n - 1] = 0;
		if (*text == 0)
			continue;
		if ((colon = strchr(text, ':')) == NULL) {
			read_state(line, text);
			continue;
		}
		*colon = 0;
		int function = function_named(text);
		if (function < 0 && strcmp(text, "*") != 0)
			refuse(line, "no such function");
		read_rule(line, function, colon + 1 + strspn(colon + 1, " "));
	}
	fclose(f);
	count_script();
}

void script_begin(const char *path) {
	pthread_mutex_lock(&lock);
	memset(&script, 0, sizeof script);
	script.sessions_limit = script.max_sessions = script.max_rw_sessions = -1;
	script.random = 88172645463325252u;
	snprintf(script.path, sizeof script.path, "%s", path == NULL ? "" : path);
	reread();
	pthread_mutex_unlock(&lock);
}

static unsigned long next_random(void) { // xorshift64
	script.random ^= script.random << 13;
	script.random ^= script.random >> 7;
	return script.random ^= script.random << 17;
}

unsigned long script_random(void) {
	pthread_mutex_lock(&lock);
	unsigned long r = next_random();
	pthread_mutex_unlock(&lock);
	return r;
}

// take says that the rule is for this call, and counts it.
static bool take(struct rule *r, enum function f) {
	if (r->ended || (r->function >= 0 && r->function != (int)f) || r->seen++ < r->after || r->times == 0)
		return false;
	if (r->one_in > 1 && next_random() % (unsigned long)r->one_in != 0)
		return false;
	if (r->times > 0)
		r->times--;
	return true;
}

static void hang(unsigned long reading) {
	for (;;) {
		nanosleep(&(struct timespec){ 0, 5000000 }, NULL);
		pthread_mutex_lock(&lock);
		reread();
		bool another = script.reading != reading;
		pthread_mutex_unlock(&lock);
		if (another)
			return;
	}
}

// perform does what a rule that was taken says. The lock is not held: it may wait, and it calls the module.
static void perform(const struct rule *r, unsigned long reading, CK_SESSION_HANDLE s, struct verdict *v) {
	count_injected();
	switch (r->action) {
	case RETURN: v->answered = true; v->rv = r->rv; break;
	case DELAY: nanosleep(&(struct timespec){ r->number / 1000000, r->number % 1000000 * 1000 }, NULL); break;
	case BUSY:
		pthread_mutex_lock(&device);
		nanosleep(&(struct timespec){ r->number / 1000000, r->number % 1000000 * 1000 }, NULL);
		pthread_mutex_unlock(&device);
		break;
	case HANG: hang(reading); break;
	case CRASH: *(volatile int *)NULL = 1; break;
	case EXIT: _exit(3);
	case LOSE_SESSION: lose_session(s); break;
	case LOSE_SESSIONS: lose_sessions(); break;
	case STALE_OBJECTS: stale_objects(); break;
	case LOSE_LOGIN: lose_login(s); break;
	case REMOVE_TOKEN:
		pthread_mutex_lock(&lock);
		script.removed = script.reading == reading;
		pthread_mutex_unlock(&lock);
		break;
	case OUTPUT: v->output = r->output; break;
	case QUERY: v->query = r->number; break;
	case LENGTH: v->length = r->number; break;
	case OAEP_SHA1: v->oaep_sha1 = true; break;
	case LOSE_ANSWER: v->lost = r->rv; break;
	}
}

struct verdict script_apply(enum function f, CK_SESSION_HANDLE s) {
	struct verdict v = { .output = -1, .lost = CKR_OK };
	struct rule taken[MOST_RULES];
	size_t n = 0;
	pthread_mutex_lock(&lock);
	reread();
	unsigned long reading = script.reading;
	for (size_t i = 0; i < script.count; i++)
		if (take(&script.rules[i], f))
			taken[n++] = script.rules[i];
	pthread_mutex_unlock(&lock);
	for (size_t i = 0; i < n; i++)
		perform(&taken[i], reading, s, &v);
	return v;
}

void script_done(enum function f, CK_RV rv) {
	if (rv != CKR_OK)
		return;
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < script.count; i++)
		if (script.rules[i].until == (int)f)
			script.rules[i].ended = true;
	pthread_mutex_unlock(&lock);
}

bool script_token_removed(void) {
	pthread_mutex_lock(&lock);
	bool removed = script.removed;
	pthread_mutex_unlock(&lock);
	return removed;
}

static bool in(const CK_MECHANISM_TYPE *list, size_t n, CK_MECHANISM_TYPE m) {
	for (size_t i = 0; i < n; i++)
		if (list[i] == m)
			return true;
	return false;
}

bool script_mechanism(CK_MECHANISM_TYPE m, bool *add) {
	pthread_mutex_lock(&lock);
	*add = in(script.add, script.adds, m);
	bool lies = *add || in(script.drop, script.drops, m);
	pthread_mutex_unlock(&lock);
	return lies;
}

size_t script_added(CK_MECHANISM_TYPE *out, size_t most) {
	size_t n = 0;
	pthread_mutex_lock(&lock);
	for (; n < script.adds && n < most; n++)
		out[n] = script.add[n];
	pthread_mutex_unlock(&lock);
	return n;
}

void script_token_info(CK_TOKEN_INFO *info) {
	pthread_mutex_lock(&lock);
	if (script.max_sessions >= 0)
		info->ulMaxSessionCount = (CK_ULONG)script.max_sessions;
	if (script.max_rw_sessions >= 0)
		info->ulMaxRwSessionCount = (CK_ULONG)script.max_rw_sessions;
	info->flags |= script.flags;
	pthread_mutex_unlock(&lock);
}

long script_session_limit(void) {
	pthread_mutex_lock(&lock);
	long limit = script.sessions_limit;
	pthread_mutex_unlock(&lock);
	return limit;
}
